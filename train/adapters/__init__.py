"""What stands between a frozen speech encoder and a language model: one small file each, one interface, one registry."""
