"""Downloading from the Hub: which files, from where, whole or resumed, checked against the hashes it promises."""
