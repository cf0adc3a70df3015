"""Training: K adapters side by side on one frozen base."""
