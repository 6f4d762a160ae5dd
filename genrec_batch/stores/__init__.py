"""Object stores: their objects, a lease that one process holds of a name, and copies on the disk."""
