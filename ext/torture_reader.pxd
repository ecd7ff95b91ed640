# One reader of the torture test.
from ext.torture cimport Reader

cdef void run_reader(Reader* r) noexcept nogil
