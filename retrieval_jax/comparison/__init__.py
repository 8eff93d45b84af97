"""Finished runs side by side: tables, differences and figures."""
