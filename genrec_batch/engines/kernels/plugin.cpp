// A TensorRT plugin, "GenrecKernel", whose layers launch the cubins of this folder through the CUDA driver.
//
// One class serves every kernel: the attribute `kind` names it, `items` says how many logits are items, `limit` below
// which an item may be chosen. Compiled on the user's machine against their TensorRT's headers (IPluginV2DynamicExt,
// 8.6 to 10), with the cubins inside: `cubins.h` is generated beside the library. Nothing is linked: the registry is
// found in the libnvinfer that Python has loaded.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "NvInfer.h"
#include "cubins.h"  // struct Cubin { name, function, warps, shared_bytes, code }; Cubin const kCubins[]; int kCubinCount

using namespace nvinfer1;

namespace {

constexpr int kWidth = 512, kHeads = 16;

// The five driver calls this needs; the driver is already in the process.
struct Driver {
    int (*load)(void**, void const*);
    int (*find)(void**, void*, char const*);
    int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
    Driver() {
        void* library = dlopen("libcuda.so.1", RTLD_NOW);
        load = reinterpret_cast<decltype(load)>(library ? dlsym(library, "cuModuleLoadData") : nullptr);
        find = reinterpret_cast<decltype(find)>(library ? dlsym(library, "cuModuleGetFunction") : nullptr);
        launch = reinterpret_cast<decltype(launch)>(library ? dlsym(library, "cuLaunchKernel") : nullptr);
    }
};

Driver const& driver() {
    static Driver const found;
    return found;
}

struct Kernel {
    void* function;
    Cubin const* cubin;
};

// Modules stay loaded for the life of the process; one context per process is assumed.
Kernel kernel(std::string const& name) {
    static std::map<std::string, Kernel> loaded;
    static std::mutex mutex;
    std::lock_guard<std::mutex> guard(mutex);
    auto known = loaded.find(name);
    if (known != loaded.end()) return known->second;
    for (int i = 0; i < kCubinCount; i++) {
        if (name != kCubins[i].name) continue;
        void *module = nullptr, *function = nullptr;
        if (!driver().load || driver().load(&module, kCubins[i].code)) return {nullptr, nullptr};
        if (driver().find(&function, module, kCubins[i].function)) return {nullptr, nullptr};
        return loaded[name] = Kernel{function, &kCubins[i]};
    }
    return {nullptr, nullptr};
}

int launch(std::string const& name, unsigned x, unsigned y, std::vector<void*> arguments, cudaStream_t stream) {
    Kernel found = kernel(name);
    if (!found.function) return 1;
    void* none = nullptr;  // Triton's scratch arguments: global, then profile; unused by these kernels
    arguments.push_back(&none);
    arguments.push_back(&none);
    return driver().launch(found.function, x, y, 1, 32 * found.cubin->warps, 1, 1, found.cubin->shared_bytes, stream,
                         arguments.data(), nullptr);
}

int block(int positions) {
    int size = 16;
    while (size < positions) size *= 2;
    return size;
}

enum class Kind { kEmbedHistory, kEmbedItem, kAddNorm, kCausalAttention, kLastAttention, kDecodeAttention, kRankItems };

bool parse(std::string const& name, Kind& kind) {
    static std::map<std::string, Kind> const kinds{
        {"embed_history", Kind::kEmbedHistory},       {"embed_item", Kind::kEmbedItem},
        {"add_norm", Kind::kAddNorm},                 {"causal_attention", Kind::kCausalAttention},
        {"last_attention", Kind::kLastAttention},     {"decode_attention", Kind::kDecodeAttention},
        {"rank_items", Kind::kRankItems},
    };
    auto found = kinds.find(name);
    if (found != kinds.end()) kind = found->second;
    return found != kinds.end();
}

class GenrecKernel final : public IPluginV2DynamicExt {
    struct State {
        Kind kind;
        int32_t items, limit;
    } state_;
    std::string namespace_;

public:
    GenrecKernel(Kind kind, int32_t items, int32_t limit) : state_{kind, items, limit} {}
    explicit GenrecKernel(void const* data) { std::memcpy(&state_, data, sizeof state_); }

    IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new GenrecKernel(state_.kind, state_.items, state_.limit);
        copy->namespace_ = namespace_;
        return copy;
    }

    DimsExprs getOutputDimensions(int32_t output, DimsExprs const* in, int32_t, IExprBuilder& build) noexcept override {
        DimsExprs shape{};
        auto set = [&](std::initializer_list<IDimensionExpr const*> sizes) {
            for (auto* size : sizes) shape.d[shape.nbDims++] = size;
        };
        switch (state_.kind) {
            case Kind::kAddNorm: return in[0];
            case Kind::kEmbedHistory: {
                auto* positions = build.operation(DimensionOperation::kSUM, *in[0].d[1], *build.constant(1));
                set({in[0].d[0], positions, build.constant(kWidth)});
                break;
            }
            case Kind::kCausalAttention: set({in[0].d[0], in[0].d[1], build.constant(kWidth)}); break;
            case Kind::kRankItems:
                if (output < 2) set({in[0].d[0]});
                else set({in[0].d[0], build.constant(4)});
                break;
            default: set({in[0].d[0], build.constant(kWidth)});
        }
        return shape;
    }

    bool supportsFormatCombination(int32_t place, PluginTensorDesc const* io, int32_t, int32_t) noexcept override {
        // One letter per input, then per output: h fp16, i int32, f fp32.
        static char const* const types[] = {"ihhhh", "iiihhh", "hhhhh", "hih", "hih", "hhhiih", "hiiiiff"};
        char const wanted = types[static_cast<int>(state_.kind)][place];
        DataType const type = wanted == 'h' ? DataType::kHALF : wanted == 'i' ? DataType::kINT32 : DataType::kFLOAT;
        return io[place].format == TensorFormat::kLINEAR && io[place].type == type;
    }

    int32_t enqueue(PluginTensorDesc const* desc, PluginTensorDesc const*, void const* const* in, void* const* out,
                    void*, cudaStream_t stream) noexcept override {
        void const *a = in[0], *b = in[1], *c, *d, *e;
        void *o = out[0], *o1, *o2;
        Dims const& first = desc[0].dims;
        int rows = first.d[0], positions, pitch, seen_width;
        switch (state_.kind) {
            case Kind::kEmbedHistory:
                c = in[2], d = in[3], positions = first.d[1] + 1;
                return launch("embed_history", positions, rows, {&a, &b, &c, &d, &o, &positions}, stream);
            case Kind::kEmbedItem:
                c = in[2], d = in[3], e = in[4];
                return launch("embed_item", rows, 1, {&a, &b, &c, &d, &e, &o}, stream);
            case Kind::kAddNorm:
                c = in[2], d = in[3];
                for (int i = 1; i + 1 < first.nbDims; i++) rows *= first.d[i];
                return launch("add_norm", (rows + 3) / 4, 1, {&a, &b, &c, &d, &o, &rows}, stream);
            case Kind::kCausalAttention:
            case Kind::kLastAttention: {
                positions = first.d[1];
                char const* name = state_.kind == Kind::kLastAttention ? "last_attention_" : "causal_attention_";
                return launch(name + std::to_string(block(positions)), rows * kHeads, 1, {&a, &b, &o, &positions}, stream);
            }
            case Kind::kDecodeAttention: {
                // fresh [B, 3D], prefix [B, S, 3D], recent [T, B, 3D], lengths [B], step [1]
                c = in[2], d = in[3], e = in[4], positions = desc[1].dims.d[1];
                std::string const steps = desc[2].dims.d[0] <= 16 ? "_16" : "_64";
                return launch("decode_attention_" + std::to_string(block(positions)) + steps, rows * kHeads, 1,
                              {&a, &b, &c, &d, &e, &o, &positions, &rows}, stream);
            }
            case Kind::kRankItems: {
                // logits [B, LD], seen [B, X], read [T, B], step [1]
                c = in[2], d = in[3], o1 = out[1], o2 = out[2], pitch = first.d[1], seen_width = desc[1].dims.d[1];
                int items = state_.items, limit = state_.limit;
                return launch("rank_items", rows, 1,
                              {const_cast<void const**>(&a), &b, &c, &d, &o, &o1, &o2, &rows, &seen_width, &items, &limit, &pitch},
                              stream);
            }
        }
        return 1;
    }

    DataType getOutputDataType(int32_t output, DataType const*, int32_t) const noexcept override {
        if (state_.kind != Kind::kRankItems) return DataType::kHALF;
        return output == 0 ? DataType::kINT32 : DataType::kFLOAT;
    }
    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {}
    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        return 0;
    }
    char const* getPluginType() const noexcept override { return "GenrecKernel"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    int32_t getNbOutputs() const noexcept override { return state_.kind == Kind::kRankItems ? 3 : 1; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    size_t getSerializationSize() const noexcept override { return sizeof state_; }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &state_, sizeof state_); }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
};

class Creator final : public IPluginCreator {
    std::vector<PluginField> fields_{{"kind", nullptr, PluginFieldType::kCHAR, 1},
                                     {"items", nullptr, PluginFieldType::kINT32, 1},
                                     {"limit", nullptr, PluginFieldType::kINT32, 1}};
    PluginFieldCollection collection_{3, fields_.data()};
    std::string namespace_;

public:
    char const* getPluginName() const noexcept override { return "GenrecKernel"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        std::string name;
        int32_t items = 0, limit = 0;
        for (int i = 0; i < given->nbFields; i++) {
            PluginField const& field = given->fields[i];
            if (!std::strcmp(field.name, "kind")) name.assign(static_cast<char const*>(field.data), field.length);
            if (!std::strcmp(field.name, "limit")) limit = *static_cast<int32_t const*>(field.data);
            if (!std::strcmp(field.name, "items")) items = *static_cast<int32_t const*>(field.data);
        }
        while (!name.empty() && name.back() == '\0') name.pop_back();
        Kind kind;
        return parse(name, kind) ? new GenrecKernel(kind, items, limit) : nullptr;
    }
    IPluginV2* deserializePlugin(char const*, void const* data, size_t) noexcept override {
        return new GenrecKernel(data);
    }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
};

}  // namespace

// The version of TensorRT this library was compiled for: major * 1000 + minor.
extern "C" int genrec_tensorrt_version() { return NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR; }

// Registers the plugin in the given, already loaded libnvinfer; 0 is success.
extern "C" int genrec_register(char const* libnvinfer) {
    static Creator creator;
    void* library = dlopen(libnvinfer, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return 1;
    auto registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
    if (!registry) return 2;
    return registry()->registerCreator(creator, "") ? 0 : 3;
}
