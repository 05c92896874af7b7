"""The four sketch tasks: an encoder, a head and a loss each."""
