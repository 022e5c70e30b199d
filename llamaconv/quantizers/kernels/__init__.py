"""The loops that torch cannot express well: one column, one code, one grid after the other."""
