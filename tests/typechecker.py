"""What checks annotations while testing: beartype, with int accepted as float (PEP 484)."""

from beartype import BeartypeConf, beartype

with_numeric_tower = beartype(conf=BeartypeConf(is_pep484_tower=True))
