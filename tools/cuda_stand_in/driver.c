/* libcuda.so.1 with the names that PyTorch 2.14's libcaffe2_nvrtc.so needs (nm -D). The backward pass asks one of them. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuCtxGetCurrent(void) { return 0; }
int cuCtxSetCurrent(void) { return 0; }
int cuDeviceGet(void) { return 0; }
int cuDeviceGetAttribute(void) { return 0; }
int cuDevicePrimaryCtxRetain(void) { return 0; }
int cuFuncGetAttribute(void) { return 0; }
int cuFuncSetAttribute(void) { return 0; }
int cuFuncSetCacheConfig(void) { return 0; }
int cuGetErrorString(void) { return 0; }
int cuLaunchCooperativeKernel(void) { return 0; }
int cuLaunchKernel(void) { return 0; }
int cuLinkAddData_v2(void) { return 0; }
int cuLinkComplete(void) { return 0; }
int cuLinkCreate_v2(void) { return 0; }
int cuModuleGetFunction(void) { return 0; }
int cuModuleLoad(void) { return 0; }
int cuModuleLoadData(void) { return 0; }
int cuModuleLoadDataEx(void) { return 0; }
int cuModuleUnload(void) { return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(void) { return 0; }
int cuPointerGetAttribute(void) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
