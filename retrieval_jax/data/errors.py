"""The error that malformed or missing data raises."""


class DataError(ValueError):
  """Malformed input; the message says where it stands and what to do."""
