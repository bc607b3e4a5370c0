"""What happens when things die: `scripts/faults` kills them, a thousand times, and looks at what is left."""
