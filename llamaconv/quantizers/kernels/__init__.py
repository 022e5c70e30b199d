"""The one loop that torch cannot express well: rounding column after column while passing the error on."""
