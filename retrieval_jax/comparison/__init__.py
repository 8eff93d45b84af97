"""Finished runs beside each other: tables, differences and figures."""
