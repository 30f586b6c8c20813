"""The machine: devices, compiled programs, clusters."""
