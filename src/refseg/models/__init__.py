"""The networks, one folder or file each: start with shnet/network.py. interface.py says what every one promises."""
