/* Functions of CUDA's libraries for a process that is to believe in a GPU: memory is the host's, one
   device is there, and whatever would compute succeeds and does nothing. Those that are not here
   return 0 (stand_in.py). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int give(void **place, size_t size) {
    return posix_memalign(place, 256, size ? size : 256);
}

int cudaMalloc(void **place, size_t size) { return give(place, size); }
int cudaMallocHost(void **place, size_t size) { return give(place, size); }
int cudaHostAlloc(void **place, size_t size, unsigned flags) { return give(place, size); }
int cudaMallocFromPoolAsync(void **place, size_t size, void *pool, void *stream) {
    return give(place, size);
}
int cudaFree(void *place) { free(place); return 0; }
int cudaFreeHost(void *place) { free(place); return 0; }
int cudaFreeAsync(void *place, void *stream) { free(place); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    memmove(to, from, size);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    memmove(to, from, size);
    return 0;
}
int cudaMemset(void *place, int value, size_t size) { memset(place, value, size); return 0; }
int cudaMemsetAsync(void *place, int value, size_t size, void *stream) {
    memset(place, value, size);
    return 0;
}
int cudaMemGetInfo(size_t *left, size_t *all) {
    *left = (size_t)8 << 30;
    *all = (size_t)16 << 30;
    return 0;
}

int cudaGetDeviceCount(int *number) { *number = 1; return 0; }
int cudaGetDevice(int *number) { *number = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }

/* The fields of cudaDeviceProp that ONNX Runtime reads, by where they lie: those up to the compute
   capability stand where they did in CUDA 12 and 13. */
int cudaGetDeviceProperties(char *at, int device) {
    memset(at, 0, 640);
    strcpy(at, "stand-in");
    *(size_t *)(at + 288) = (size_t)16 << 30; /* memory */
    *(size_t *)(at + 296) = 49152;            /* shared memory of a block */
    *(int *)(at + 304) = 65536;               /* registers of a block */
    *(int *)(at + 308) = 32;                  /* warp */
    *(int *)(at + 320) = 1024;                /* threads of a block */
    for (int axis = 0; axis < 3; axis++) {
        *(int *)(at + 324 + 4 * axis) = 1024;
        *(int *)(at + 336 + 4 * axis) = 65535;
    }
    *(size_t *)(at + 352) = 65536; /* constants */
    *(int *)(at + 360) = 9;        /* compute capability 9.0 */
    for (int offset = 384; offset < 640; offset += 4) *(int *)(at + offset) = 100;
    return 0;
}
int cudaGetDeviceProperties_v2(char *at, int device) { return cudaGetDeviceProperties(at, device); }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;   /* threads of a block */
    case 8: *value = 49152; break;  /* shared memory of a block */
    case 10: *value = 32; break;    /* warp */
    case 16: *value = 100; break;   /* multiprocessors */
    case 39: *value = 2048; break;  /* threads of a multiprocessor */
    case 75: *value = 9; break;     /* compute capability, major */
    case 76: *value = 0; break;     /* and minor */
    case 81: case 97: *value = 227000; break; /* shared memory, at most */
    case 115: *value = 0; break;    /* memory pools */
    default: *value = 1;
    }
    return 0;
}
int cudaPointerGetAttributes(int *at, const void *place) {
    memset(at, 0, 24);
    at[0] = 2; /* memory of the device */
    return 0;
}
int cudaFuncGetAttributes(char *at, const void *function) {
    memset(at, 0, 96);
    *(int *)(at + 24) = 1024;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *number, const void *function, int block, size_t shared, unsigned flags) {
    *number = 1;
    return 0;
}
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventElapsedTime(float *time, void *from, void *to) { *time = 0; return 0; }

void *__cudaRegisterFatBinary(void *binary) {
    void *place = 0;
    give(&place, 64);
    return place;
}
int __cudaGetKernel(void **kernel, void *function) { *kernel = function; return 0; }

const char *cudaGetErrorString(int error) { return "none"; }
const char *cudaGetErrorName(int error) { return "none"; }
const char *cublasGetStatusName(int status) { return "none"; }
const char *cublasGetStatusString(int status) { return "none"; }
const char *cudnnGetErrorString(int status) { return "none"; }
size_t cudnnGetVersion(void) { return 91000; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cudnnGetReductionWorkspaceSize(void *h, void *d, void *a, void *c, size_t *size) {
    *size = 0;
    return 0;
}
int cudnnGetReductionIndicesSize(void *h, void *d, void *a, void *c, size_t *size) {
    *size = 0;
    return 0;
}
