"""`MemoryWindow`: one reusable object lending raw memory to buffer-taking functions, instead of a
slice per call (_fast, ground floor)."""
from cpython.buffer cimport PyBuffer_FillInfo


cdef class MemoryWindow:
    """Exports whatever memory it was last pointed at. Internal: the callee must
    release the buffer before it returns."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.data == NULL:
            raise BufferError("the window shows nothing")
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 0, flags)
