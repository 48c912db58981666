"""Where programs run: buffers, devices, the native toolchain and its cache of libraries."""
