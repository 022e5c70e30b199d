"""A package, so that ``tests.…`` is this folder: AutoGPTQ's wheel installs a package of that name too."""
