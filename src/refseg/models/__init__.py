"""The networks. Start with shnet/network.py."""
