"""Private: how `make_defect_images` draws textures, objects, defects and cameras."""
