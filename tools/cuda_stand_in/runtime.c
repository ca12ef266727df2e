/* The calls of the CUDA runtime by which PyTorch's C++ asks for devices, streams and events: one device, nothing to wait for. */
#include <string.h>

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
/* Zeros for as much of the structure as all versions have. */
int cudaGetDeviceProperties(char *properties, int device) { memset(properties, 0, 900); strcpy(properties, "stand-in"); return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -3; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { static long made = 0; *stream = (void *)(made += 16); return 0; }
int cudaStreamQuery(void *stream) { return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)16; return 0; }
int cudaEventRecord(void *event, void *stream) { return 0; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return 0; }
int cudaEventQuery(void *event) { return 0; }
int cudaEventSynchronize(void *event) { return 0; }
int cudaEventDestroy(void *event) { return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
/* Memory that CUDA does not know. */
int cudaPointerGetAttributes(void *attributes, const void *pointer) { memset(attributes, 0, 32); return 0; }
