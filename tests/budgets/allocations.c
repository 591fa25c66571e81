/* Counts the objects this interpreter allocates, those freed at once included: `tracemalloc` sees only what stays. */
#include <Python.h>

static PyMemAllocatorEx inner;
static long long count;

static void *counted_malloc(void *context, size_t size) {
    count++;
    return inner.malloc(inner.ctx, size);
}

static void *counted_calloc(void *context, size_t number, size_t size) {
    count++;
    return inner.calloc(inner.ctx, number, size);
}

static void *passed_realloc(void *context, void *memory, size_t size) {
    return inner.realloc(inner.ctx, memory, size);
}

static void passed_free(void *context, void *memory) {
    inner.free(inner.ctx, memory);
}

void counting_start(void) {
    PyMemAllocatorEx counting = {NULL, counted_malloc, counted_calloc, passed_realloc, passed_free};
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &inner);
    count = 0;
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &counting);
}

long long counting_stop(void) {
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &inner);
    return count;
}
