"""The network. Start with `shnet.py`."""
