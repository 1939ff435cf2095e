/* A CUDA driver in the host's memory: one device, whose streams do their work when somebody waits for them.
 *
 * It has what cuda.core and vaedeploy's runtime ask of a driver, so that their calls run for real where there is no GPU.
 * With `devices` at 0, as it begins, nothing is there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201 };

int devices = 0;
int known = 13000; /* the newest CUDA */
uint64_t freed = 0;
void *freed_in = NULL; /* the stream in whose order memory of the pool went back last */
uint64_t room = 1ull << 34; /* bytes that one allocation may take */

CUresult cuInit(unsigned flags) { return OK; }
CUresult cuDriverGetVersion(int *version) { *version = known; return OK; }
/* Newer versions of a function have a suffix, and take the place of the old ones. */
CUresult cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags, int *status) {
    Dl_info here;
    char newer[200];
    dladdr((void *)cuInit, &here);
    void *self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", name);
    void *own = dlsym(self, newer);
    *address = own ? own : dlsym(self, name);
    if (status) *status = *address ? 0 : 1;
    return OK;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : "an error"; return OK;
}
CUresult cuGetErrorName(CUresult error, const char **text) { *text = "CUDA_ERROR"; return OK; }
CUresult cuDeviceGetCount(int *count) { *count = devices; return OK; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < devices ? OK : NO_DEVICE; }
CUresult cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Host"); return OK; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 1;
    return OK;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1ull << 34; return OK; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x10; return OK; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
static __thread void *current;
#define IN_CONTEXT if (!current) return NO_CONTEXT;
CUresult cuCtxSetCurrent(void *context) { current = context; return OK; }
CUresult cuCtxGetCurrent(void **context) { *context = current; return OK; }
CUresult cuCtxGetDevice(int *device) { *device = 0; return current ? OK : NO_CONTEXT; }

/* Streams: a queue of copies and of waits for other streams. */
typedef struct { int kind; void *target; const void *source; size_t size; struct stream *other; uint64_t until; } Work;
enum { COPY, WAIT, CALL };
typedef struct graph { Work work[64]; int count; } Graph;
typedef struct stream { Work work[4096]; uint64_t put, done; Graph *recording; int device; } Stream;
typedef struct { Stream *stream; uint64_t until; } Event;
static Stream legacy;

static Stream *of(void *handle) { return (uintptr_t)handle <= 2 ? &legacy : handle; }
static void put(Stream *stream, Work work) {
    if (stream->recording) stream->recording->work[stream->recording->count++] = work;
    else stream->work[stream->put++ % 4096] = work;
}
static void run(Stream *stream, uint64_t until) {
    while (stream->done < until) {
        Work work = stream->work[stream->done++ % 4096];
        if (work.kind == COPY) memmove(work.target, work.source, work.size);
        else if (work.kind == WAIT) run(work.other, work.until);
        else ((void (*)(void *))work.target)((void *)work.source);
    }
}
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return OK; }
CUresult cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    IN_CONTEXT
    *stream = calloc(1, sizeof(Stream)); return OK;
}
CUresult cuStreamDestroy_v2(void *stream) { return OK; }
CUresult cuStreamGetCtx(void *stream, void **context) { *context = current; return OK; }
CUresult cuStreamGetFlags(void *stream, unsigned *flags) { *flags = 1; return OK; }
CUresult cuStreamGetDevice(void *stream, int *device) { *device = ((Stream *)stream)->device; return OK; }
void set_stream_device(Stream *stream, int device) { stream->device = device; }
CUresult cuStreamGetPriority(void *stream, int *priority) { *priority = 0; return OK; }
CUresult cuStreamIsCapturing(void *stream, int *status) { *status = of(stream)->recording != NULL; return OK; }
CUresult cuStreamSynchronize(void *stream) { run(of(stream), of(stream)->put); return OK; }
CUresult cuEventCreate(void **event, unsigned flags) { IN_CONTEXT *event = calloc(1, sizeof(Event)); return OK; }
CUresult cuEventDestroy_v2(void *event) { free(event); return OK; }
CUresult cuEventRecord(void *event, void *stream) {
    *(Event *)event = (Event){of(stream), of(stream)->put};
    return OK;
}
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    Event *e = event;
    put(of(stream), (Work){.kind = WAIT, .other = e->stream, .until = e->until});
    return OK;
}

CUresult cuLaunchHostFunc(void *stream, void (*call)(void *), void *data) {
    put(of(stream), (Work){CALL, (void *)call, data});
    return OK;
}

/* Memory: the host's, aligned as a device's is. */
static CUresult allocate(void *address, size_t size) {
    IN_CONTEXT
    if (size > room) return OUT_OF_MEMORY;
    return posix_memalign(address, 512, size ? size : 1) ? OUT_OF_MEMORY : OK;
}
CUresult cuMemAllocHost_v2(void **memory, size_t size) { return allocate(memory, size); }
CUresult cuMemAlloc_v2(uint64_t *memory, size_t size) { return allocate(memory, size); }
CUresult cuMemFree_v2(uint64_t memory) {
    IN_CONTEXT
    free((void *)memory);
    freed++;
    return OK;
}
CUresult cuMemFreeHost(void *memory) { IN_CONTEXT free(memory); freed++; return OK; }
CUresult cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    IN_CONTEXT
    put(of(stream), (Work){COPY, (void *)target, source, size}); return OK;
}
CUresult cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    IN_CONTEXT
    put(of(stream), (Work){COPY, target, (void *)source, size}); return OK;
}
CUresult cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t size, void *stream) {
    IN_CONTEXT
    put(of(stream), (Work){COPY, (void *)target, (void *)source, size}); return OK;
}

/* The structure of the driver, as far as device memory needs it. */
typedef struct {
    size_t x, y; int kind; const void *host; uint64_t device; void *array; size_t pitch;
} Side;
typedef struct { Side source, target; size_t width, height; } Copy2D;
CUresult cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    IN_CONTEXT
    if (copy->source.pitch > INT32_MAX || copy->target.pitch > INT32_MAX) return INVALID_VALUE;
    if (copy->source.pitch < copy->width || copy->target.pitch < copy->width) return INVALID_VALUE;
    for (size_t row = 0; row < copy->height; row++) {
        char *target = (char *)copy->target.device + row * copy->target.pitch;
        char *source = (char *)copy->source.device + row * copy->source.pitch;
        put(of(stream), (Work){COPY, target, source, copy->width});
    }
    return OK;
}
CUresult cuMemGetInfo_v2(size_t *left, size_t *total) { IN_CONTEXT *left = room; *total = 1ull << 34; return OK; }

/* Graphs. */
CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
    of(stream)->recording = calloc(1, sizeof(Graph)); return OK;
}
CUresult cuStreamEndCapture(void *stream, void **graph) {
    *graph = of(stream)->recording; of(stream)->recording = NULL; return OK;
}
CUresult cuGraphInstantiateWithFlags(void **made, void *graph, uint64_t flags) {
    *made = memcpy(malloc(sizeof(Graph)), graph, sizeof(Graph));
    return OK;
}
CUresult cuGraphLaunch(void *graph, void *stream) {
    for (int i = 0; i < ((Graph *)graph)->count; i++) put(of(stream), ((Graph *)graph)->work[i]);
    return OK;
}
CUresult cuGraphDestroy(void *graph) { free(graph); return OK; }
CUresult cuGraphExecDestroy(void *graph) { free(graph); return OK; }

/* The pool that a device allocates from. */
CUresult cuDeviceGetMemPool(void **pool, int device) { *pool = (void *)0x20; return OK; }
CUresult cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = (void *)0x20; return OK; }
CUresult cuMemGetMemPool(void **pool, void *location, int kind) { *pool = (void *)0x20; return OK; }
CUresult cuMemGetDefaultMemPool(void **pool, void *location, int kind) { *pool = (void *)0x20; return OK; }
CUresult cuMemPoolGetAttribute(void *pool, int attribute, void *value) { *(uint64_t *)value = UINT64_MAX; return OK; }
CUresult cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
CUresult cuMemAllocFromPoolAsync(uint64_t *memory, size_t size, void *pool, void *stream) {
    return allocate(memory, size);
}
CUresult cuMemAllocAsync(uint64_t *memory, size_t size, void *stream) { return allocate(memory, size); }
CUresult cuMemFreeAsync(uint64_t memory, void *stream) {
    IN_CONTEXT
    put(of(stream), (Work){CALL, (void *)free, (void *)memory});
    freed_in = stream;
    return cuStreamSynchronize(stream);
}
CUresult cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    *(int *)value = attribute == 2 ? 2 : 0; return OK;
}
CUresult cuPointerGetAttributes(unsigned count, int *attributes, void **values, uint64_t pointer) {
    /* Attribute 2 is the kind of memory, and 2 is a device's; of everything else 0. */
    for (unsigned i = 0; i < count; i++) *(int *)values[i] = attributes[i] == 2 ? 2 : 0;
    return OK;
}
