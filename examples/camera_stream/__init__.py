"""A camera that streams: three devices of one interface, a viewer and a recorder."""
