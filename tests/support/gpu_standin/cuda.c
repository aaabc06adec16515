/* A stand-in for libcuda and libcudart on a machine without a GPU: "GPU memory" is host memory.
 *
 * It proves what can be proved of the callers without the hardware: that sizes, addresses and
 * directions are right (every copy is held against a table of what was allocated), and that the
 * order is right: copies are only made when their stream is synchronised or work is launched in
 * it (standin_launch), as with the real thing, where reading too early reads the old bytes.
 *
 *   STANDIN_GPU         the GPU's name; without it there is none
 *   STANDIN_CAPABILITY  "8.7"
 *   STANDIN_SMS         multiprocessors
 *   STANDIN_CRASH       a function that ends the process by SIGSEGV
 *   STANDIN_HANG        a function that never returns
 *   STANDIN_FAIL        a function that returns error 2
 *   STANDIN_LOG         a file that gets one line for every call of the runtime
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUT_OF_MEMORY = 2, INVALID_VALUE = 1, NO_DEVICE = 100, MOST = 256 };

static struct { char *start; size_t size; } held[MOST];
static struct { void *to; const void *from; size_t size; void *stream; } pending[MOST];
static int waiting;

static int is(const char *variable, const char *function) {
    const char *value = getenv(variable);
    return value != NULL && strcmp(value, function) == 0;
}

static int enter(const char *function, size_t size, int kind) {
    const char *log = getenv("STANDIN_LOG");
    if (log != NULL && strncmp(function, "cuda", 4) == 0) {
        FILE *file = fopen(log, "a");
        fprintf(file, "%s %zu %d\n", function, size, kind);
        fclose(file);
    }
    if (is("STANDIN_CRASH", function)) raise(SIGSEGV);
    while (is("STANDIN_HANG", function)) sleep(1);
    return is("STANDIN_FAIL", function) ? OUT_OF_MEMORY : 0;
}

static int has_gpu(void) { return getenv("STANDIN_GPU") != NULL; }

/* The driver. */
int cuInit(unsigned flags) {
    int status = enter("cuInit", 0, 0);
    return status ? status : has_gpu() ? 0 : NO_DEVICE;
}
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = has_gpu(); return enter("cuDeviceGetCount", 0, 0); }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "%s", getenv("STANDIN_GPU"));
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *capability = getenv("STANDIN_CAPABILITY"), *sms = getenv("STANDIN_SMS");
    int major = 8, minor = 7;
    if (capability != NULL) sscanf(capability, "%d.%d", &major, &minor);
    if (attribute == 16) *value = sms != NULL ? atoi(sms) : 16;
    else if (attribute == 75) *value = major;
    else if (attribute == 76) *value = minor;
    else return INVALID_VALUE;
    return 0;
}
int cuGetErrorString(int status, const char **text) {
    *text = status == NO_DEVICE ? "no CUDA-capable device is detected" : "stand-in error";
    return 0;
}

/* The runtime. */
const char *cudaGetErrorString(int status) {
    switch (status) {
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_VALUE: return "invalid argument";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    default: return "stand-in error";
    }
}
int cudaGetDeviceCount(int *count) {
    int status = enter("cudaGetDeviceCount", 0, 0);
    *count = has_gpu();
    return status ? status : has_gpu() ? 0 : NO_DEVICE;
}
int cudaMalloc(void **address, size_t size) {
    int status = enter("cudaMalloc", size, 0);
    if (status) return status;
    for (int i = 0; i < MOST; i++)
        if (held[i].start == NULL) {
            held[i].start = *address = malloc(size);
            held[i].size = size;
            memset(*address, 0xA5, size);
            return 0;
        }
    return OUT_OF_MEMORY;
}
int cudaFree(void *address) {
    int status = enter("cudaFree", 0, 0);
    if (status) return status;
    for (int i = 0; i < MOST; i++)
        if (address != NULL && held[i].start == address) {
            free(address);
            held[i].start = NULL;
            return 0;
        }
    return INVALID_VALUE;
}
/* Bytes from this address to the end of its allocation; 0 outside of "GPU memory". */
size_t standin_room(const void *address) {
    for (int i = 0; i < MOST; i++) {
        char *start = held[i].start;
        if (start != NULL && (char *)address >= start && (char *)address < start + held[i].size)
            return start + held[i].size - (char *)address;
    }
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    int status = enter("cudaMemcpyAsync", size, kind);
    const void *gpu = kind == 1 ? to : from, *host = kind == 1 ? from : to;
    if (status) return status;
    if ((kind != 1 && kind != 2) || standin_room(gpu) < size || standin_room(host) > 0 ||
        stream == NULL || waiting == MOST)
        return INVALID_VALUE;
    pending[waiting].to = to;
    pending[waiting].from = from;
    pending[waiting].size = size;
    pending[waiting++].stream = stream;
    return 0;
}
/* Make the copies that wait in a stream, in their order. */
void standin_launch(void *stream) {
    int left = 0;
    for (int i = 0; i < waiting; i++)
        if (pending[i].stream == stream) memcpy(pending[i].to, pending[i].from, pending[i].size);
        else pending[left++] = pending[i];
    waiting = left;
}
int cudaStreamCreate(void **stream) {
    int status = enter("cudaStreamCreate", 0, 0);
    *stream = malloc(1);
    return status;
}
int cudaStreamSynchronize(void *stream) {
    int status = enter("cudaStreamSynchronize", 0, 0);
    standin_launch(stream);
    return status;
}
int cudaStreamDestroy(void *stream) {
    free(stream);
    return enter("cudaStreamDestroy", 0, 0);
}
