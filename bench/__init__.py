"""Measurements of vecdb and its peers on real data; nothing here is imported by the product."""
