"""A trained Llama, a Hub on loopback that has it, and a run of the whole road: download, quantize, judge."""
