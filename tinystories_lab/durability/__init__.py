"""What keeps a run safe: a lock, an orderly stop, and a mirror on another disk."""
