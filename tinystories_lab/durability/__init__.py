"""What keeps a run safe: one session at a time, an orderly stop, and a mirror on another disk."""
