"""Resident memory of this process, on Linux."""


def resident_bytes(field: str) -> int:
  """Returns 'VmRSS' (now) or 'VmHWM' (the peak) of this process, on Linux."""
  with open('/proc/self/status', encoding='utf-8') as lines:
    for line in lines:
      if line.startswith(field):
        return 1024 * int(line.split()[1])
  raise KeyError(field)


def forget_peak():
  """Makes VmHWM start again from the present (see proc(5), clear_refs)."""
  with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
    file.write('5')
