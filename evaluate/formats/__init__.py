"""Texts from anywhere and for anywhere: one file a format, each read into `Entry`, and paired by id or by line."""
