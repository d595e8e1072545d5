"""Private: the command ``clipad``, from its arguments to its tables and pages."""
