/* The part of the CUDA driver that Triton calls, doing nothing: kernels are loaded and launched, and do not run.
 * See stub_driver.py. Names, types and numbers are those of cuda.h. */
#include <stddef.h>

typedef int CUresult;

enum { MAX_SHARED_MEMORY_OPTIN = 97, MULTIPROCESSOR_COUNT = 16, WARP_SIZE = 10, ENOUGH = 1 << 18 };

static long launches;

long stub_launches(void) { return launches; }

CUresult cuLaunchKernelEx(const void *config, void *function, void **parameters, void **extra) {
  launches++;
  return 0;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case MAX_SHARED_MEMORY_OPTIN: *value = 232448; break; /* of an H200, as is the next */
  case MULTIPROCESSOR_COUNT: *value = 132; break;
  case WARP_SIZE: *value = 32; break;
  default: *value = ENOUGH;
  }
  return 0;
}

CUresult cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == 0 ? 1024 : 0; /* threads a block; registers, spills and shared memory */
  return 0;
}

CUresult cuPointerGetAttribute(void *value, int attribute, unsigned long long pointer) {
  *(unsigned long long *)value = pointer; /* memory of the host serves as memory of the device */
  return 0;
}

CUresult cuCtxGetCurrent(void **context) { *context = &launches; return 0; }
CUresult cuCtxSetCurrent(void *context) { return 0; }
CUresult cuCtxGetDevice(int *device) { *device = 0; return 0; }
CUresult cuCtxGetLimit(size_t *value, int limit) { *value = 1 << 20; return 0; }
CUresult cuCtxSetLimit(int limit, size_t value) { return 0; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = &launches; return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
CUresult cuFuncSetCacheConfig(void *function, int config) { return 0; }
CUresult cuGetErrorString(int error, const char **text) { *text = "error of the stub driver"; return 0; }
CUresult cuInit(unsigned flags) { return 0; }
CUresult cuModuleGetFunction(void **function, void *module, const char *name) { *function = &launches; return 0; }
CUresult cuModuleLoadData(void **module, const void *image) { *module = &launches; return 0; }
CUresult cuModuleUnload(void *module) { return 0; }
CUresult cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) { *count = 1; return 0; }
CUresult cuTensorMapEncodeIm2col(void) { return 0; }
CUresult cuTensorMapEncodeTiled(void) { return 0; }
