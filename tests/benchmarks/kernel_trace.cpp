// Which kernels a process runs on a GPU, in order, with their times: for a library that fuses all into one layer.
//
//   C=/usr/local/cuda/targets/x86_64-linux
//   K=$(grep -o '^} CUpti_ActivityKernel[0-9]*' $C/include/cupti_activity.h | tail -1 | cut -c3-)
//   g++ -O1 -shared -fPIC -DKERNEL=$K -I$C/include kernel_trace.cpp -o trace.so $C/lib/libcupti.so -Wl,-rpath,$C/lib
//   CUDA_INJECTION64_PATH=$PWD/trace.so TRACE_OUT=kernels.tsv python bench_tensorrt_forms.py as-is -- run --plain
//
// A line holds start and duration in ns, the grid, threads of a block, and the name. Kernels of a replayed graph are
// told one by one.
#include <cupti.h>

#include <cstdio>
#include <cstdlib>

static FILE *out;

static void requested(uint8_t **buffer, size_t *size, size_t *most) {
  *size = 8 << 20;
  *buffer = static_cast<uint8_t *>(aligned_alloc(8, *size));
  *most = 0;
}

static void completed(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
  CUpti_Activity *record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto *kernel = reinterpret_cast<const KERNEL *>(record);
    fprintf(out, "%llu\t%llu\t%d,%d,%d\t%d\t%s\n", static_cast<unsigned long long>(kernel->start),
            static_cast<unsigned long long>(kernel->end - kernel->start), kernel->gridX, kernel->gridY, kernel->gridZ,
            kernel->blockX, kernel->name);
  }
  free(buffer);
}

static void finish() {
  cuptiActivityFlushAll(1);
  fclose(out);
}

extern "C" int InitializeInjection() {
  const char *name = getenv("TRACE_OUT");
  out = fopen(name ? name : "kernels.tsv", "w");
  if (!out) return 0;
  cuptiActivityRegisterCallbacks(requested, completed);
  if (cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS) return 0;
  atexit(finish);
  return 1;
}
