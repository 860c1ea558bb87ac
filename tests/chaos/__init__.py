"""What happens when everything goes wrong: kills, full disks, damaged files, senseless calls.

`python -m chaos [SECONDS]` with tests/ on the path. Each line says how many trials ended how.
"""
