// A TensorRT plugin, "GenrecKernel", whose layers launch the cubins of this folder through the CUDA driver.
//
// One class serves every kernel: the attribute `kind` names it. `items` is the number of logits that are items, `limit`
// the first item that may not be chosen; `positions` and `places` are the S and N of triton_source.py, `fill` and `relu`
// the arguments of that name there. Compiled on the user's machine against its TensorRT headers (IPluginV2DynamicExt,
// 8.6 to 10), with the cubins inside: `cubins.h` is generated beside the library. Nothing is linked: the registry comes
// from the libnvinfer that Python has loaded.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "NvInfer.h"
// struct Cubin { name, function, warps, shared_bytes, scratch_bytes, code }; Cubin const kCubins[];
// int kCubinCount, kWidth, kAttentionHeads, kTaskHeads
#include "cubins.h"

using namespace nvinfer1;

namespace {

constexpr int kShared = 48 << 10;     // bytes of shared memory that a kernel may have without asking
constexpr int kMaxSharedAttribute = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kProcessorCount = 16;   // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT

// The driver calls this needs; the driver is already in the process.
struct Driver {
    int (*load)(void**, void const*);
    int (*find)(void**, void*, char const*);
    int (*set)(void*, int, int);
    int (*device)(int*);
    int (*attribute)(int*, int, int);
    int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
    Driver() {
        void* library = dlopen("libcuda.so.1", RTLD_NOW);
        load = reinterpret_cast<decltype(load)>(library ? dlsym(library, "cuModuleLoadData") : nullptr);
        find = reinterpret_cast<decltype(find)>(library ? dlsym(library, "cuModuleGetFunction") : nullptr);
        set = reinterpret_cast<decltype(set)>(library ? dlsym(library, "cuFuncSetAttribute") : nullptr);
        device = reinterpret_cast<decltype(device)>(library ? dlsym(library, "cuCtxGetDevice") : nullptr);
        attribute = reinterpret_cast<decltype(attribute)>(library ? dlsym(library, "cuDeviceGetAttribute") : nullptr);
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
        int const shared = static_cast<int>(kCubins[i].shared_bytes);
        if (shared > kShared && driver().set(function, kMaxSharedAttribute, shared)) return {nullptr, nullptr};
        return loaded[name] = Kernel{function, &kCubins[i]};
    }
    return {nullptr, nullptr};
}

// The multiprocessors of the GPU at hand, 0 where there is none.
int processors() {
    static int const count = [] {
        int device = 0, found = 0;
        bool const known = driver().device && driver().attribute && !driver().device(&device) &&
                           !driver().attribute(&found, kProcessorCount, device);
        return known ? found : 0;
    }();
    return count;
}

int launch(std::string const& name, unsigned x, unsigned y, std::vector<void*> arguments, cudaStream_t stream,
           void* scratch = nullptr) {
    Kernel found = kernel(name);
    if (!found.function) return 1;
    void* none = nullptr;  // Triton's scratch arguments: global, then profile
    arguments.push_back(&scratch);
    arguments.push_back(&none);
    return driver().launch(found.function, x, y, 1, 32 * found.cubin->warps, 1, 1, found.cubin->shared_bytes, stream,
                         arguments.data(), nullptr);
}

bool compiled(std::string const& name) {
    for (auto const& cubin : kCubins) {
        if (name == cubin.name) return true;
    }
    return false;
}

// The smallest compiled block that holds so many positions.
int block(int positions) {
    int size = 32;
    while (size < positions) size *= 2;
    return size;
}

int tiles(int size, int tile) { return (size + tile - 1) / tile; }

enum class Kind {
    kEmbedHistory, kEmbedItem, kAddNorm, kCausalAttention, kLastAttention, kDecodeAttention, kRankItems, kLinear,
    kRankMaskedItems
};

bool parse(std::string const& name, Kind& kind) {
    static std::map<std::string, Kind> const kinds{
        {"embed_history", Kind::kEmbedHistory},       {"embed_item", Kind::kEmbedItem},
        {"add_norm", Kind::kAddNorm},                 {"causal_attention", Kind::kCausalAttention},
        {"last_attention", Kind::kLastAttention},     {"decode_attention", Kind::kDecodeAttention},
        {"rank_items", Kind::kRankItems},             {"linear", Kind::kLinear},
        {"rank_masked_items", Kind::kRankMaskedItems},
    };
    auto found = kinds.find(name);
    if (found != kinds.end()) kind = found->second;
    return found != kinds.end();
}

class GenrecKernel final : public IPluginV2DynamicExt {
public:
    struct State {
        Kind kind;
        int32_t items, limit, positions, places, fill, relu;
    };

private:
    State state_;
    std::string namespace_;

public:
    explicit GenrecKernel(State const& state) : state_(state) {}
    explicit GenrecKernel(void const* data) { std::memcpy(&state_, data, sizeof state_); }

    IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new GenrecKernel(state_);
        copy->namespace_ = namespace_;
        return copy;
    }

    // One letter per input, then per output: h fp16, i int32, f fp32.
    char const* types() const {
        static char const* const all[] = {"ihiihhh", "iiihhh", "hhhhh", "hiih", "hiih", "hhhiiih", "hiiiiiff", "hhhh",
                                        "hiiiiiiiff"};
        return all[static_cast<int>(state_.kind)];
    }

    DimsExprs getOutputDimensions(int32_t output, DimsExprs const* in, int32_t, IExprBuilder& build) noexcept override {
        DimsExprs shape{};
        auto set = [&](std::initializer_list<IDimensionExpr const*> sizes) {
            for (auto* size : sizes) shape.d[shape.nbDims++] = size;
        };
        switch (state_.kind) {
            case Kind::kAddNorm: return in[0];
            case Kind::kEmbedHistory: set({build.constant(state_.places), build.constant(kWidth)}); break;
            case Kind::kLastAttention: set({in[1].d[0], build.constant(kWidth)}); break;
            case Kind::kLinear: set({in[0].d[0], in[1].d[0]}); break;
            case Kind::kRankItems:
            case Kind::kRankMaskedItems:
                if (output < 2) set({in[0].d[0]});
                else set({in[0].d[0], build.constant(kTaskHeads)});
                break;
            default: set({in[0].d[0], build.constant(kWidth)});
        }
        return shape;
    }

    bool supportsFormatCombination(int32_t place, PluginTensorDesc const* io, int32_t, int32_t) noexcept override {
        char const wanted = types()[place];
        DataType const type = wanted == 'h' ? DataType::kHALF : wanted == 'i' ? DataType::kINT32 : DataType::kFLOAT;
        return io[place].format == TensorFormat::kLINEAR && io[place].type == type;
    }

    int32_t enqueue(PluginTensorDesc const* desc, PluginTensorDesc const*, void const* const* in, void* const* out,
                    void* workspace, cudaStream_t stream) noexcept override {
        // Kernels take addresses of their arguments: tensors first, in order, then numbers.
        std::vector<void*> tensors;
        auto add = [&](void const* place) { tensors.push_back(const_cast<void*>(place)); };
        int const count = static_cast<int>(std::strlen(types())), outputs = getNbOutputs();
        for (int i = 0; i < count - outputs; i++) add(&in[i]);
        for (int i = 0; i < outputs; i++) add(&out[i]);
        auto with = [&](std::initializer_list<int32_t*> numbers) {
            std::vector<void*> arguments(tensors);
            arguments.insert(arguments.end(), numbers.begin(), numbers.end());
            return arguments;
        };
        Dims const first = desc[0].dims;
        int32_t rows = first.d[0];
        std::string const size = std::to_string(block(state_.positions));
        switch (state_.kind) {
            case Kind::kEmbedHistory: {
                int32_t positions = first.d[1] + 1;
                return launch("embed_history", positions, rows, with({&positions, &state_.fill}), stream);
            }
            case Kind::kEmbedItem: return launch("embed_item", rows, 1, with({}), stream);
            case Kind::kAddNorm: return launch("add_norm", tiles(rows, 4), 1, with({&rows}), stream);
            case Kind::kCausalAttention:
                return launch("causal_attention_" + size, desc[1].dims.d[0] * kAttentionHeads, 1,
                              with({&state_.positions, &state_.fill}), stream);
            case Kind::kLastAttention:
                return launch("last_attention_" + size, desc[1].dims.d[0] * kAttentionHeads, 1, with({}), stream);
            case Kind::kDecodeAttention: {
                std::string const steps = desc[2].dims.d[0] <= 16 ? "_16" : "_64";
                return launch("decode_attention_" + size + steps, rows * kAttentionHeads, 1, with({&rows}), stream);
            }
            case Kind::kRankItems: {
                int32_t pitch = first.d[1];
                return launch("rank_items", rows, 1, with({&rows, &state_.items, &state_.limit, &pitch}), stream);
            }
            case Kind::kRankMaskedItems: {
                int32_t pitch = first.d[1], words = desc[6].dims.d[1];
                return launch("rank_masked_items", rows, 1,
                              with({&rows, &state_.items, &state_.limit, &pitch, &words}), stream);
            }
            case Kind::kLinear: {
                int32_t columns = desc[1].dims.d[0], depth = desc[1].dims.d[1];
                std::string name = state_.relu ? "linear_relu" : "linear";
                int const large = tiles(rows, 128) * tiles(columns, 256), small = tiles(rows, 64) * tiles(columns, 128);
                if (!compiled(name + "_large_" + std::to_string(depth))) {
                    return launch(name + "_any", small, 1, with({&rows, &columns, &depth}), stream);
                }
                if (large < processors()) {  // small tiles then keep more of the GPU busy
                    return launch(name + "_small_" + std::to_string(depth), small, 1, with({&rows, &columns}), stream);
                }
                return launch(name + "_large_" + std::to_string(depth), processors(), 1, with({&rows, &columns}), stream,
                              workspace);
            }
        }
        return 1;
    }

    DataType getOutputDataType(int32_t output, DataType const*, int32_t) const noexcept override {
        if (getNbOutputs() == 1) return DataType::kHALF;
        return output == 0 ? DataType::kINT32 : DataType::kFLOAT;
    }
    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {}
    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        if (state_.kind != Kind::kLinear) return 0;
        size_t most = 0;
        for (auto const& cubin : kCubins) most = cubin.scratch_bytes > most ? cubin.scratch_bytes : most;
        return most * processors();
    }
    char const* getPluginType() const noexcept override { return "GenrecKernel"; }
    char const* getPluginVersion() const noexcept override { return "2"; }
    int32_t getNbOutputs() const noexcept override {
        return state_.kind == Kind::kRankItems || state_.kind == Kind::kRankMaskedItems ? 3 : 1;
    }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    size_t getSerializationSize() const noexcept override { return sizeof state_; }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &state_, sizeof state_); }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
};

class Creator final : public IPluginCreator {
    std::vector<PluginField> fields_{{"kind", nullptr, PluginFieldType::kCHAR, 1}};
    PluginFieldCollection collection_{};
    std::string namespace_;

    // The numbers of a layer, by the name of their attribute.
    static std::map<std::string, int32_t GenrecKernel::State::*> const& numbers() {
        using State = GenrecKernel::State;
        static std::map<std::string, int32_t State::*> const all{
            {"items", &State::items},   {"limit", &State::limit}, {"positions", &State::positions},
            {"places", &State::places}, {"fill", &State::fill},   {"relu", &State::relu},
        };
        return all;
    }

public:
    Creator() {
        for (auto const& number : numbers()) {
            fields_.push_back({number.first.c_str(), nullptr, PluginFieldType::kINT32, 1});
        }
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    char const* getPluginName() const noexcept override { return "GenrecKernel"; }
    char const* getPluginVersion() const noexcept override { return "2"; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        std::string name;
        GenrecKernel::State state{};
        for (int i = 0; i < given->nbFields; i++) {
            PluginField const& field = given->fields[i];
            if (!std::strcmp(field.name, "kind")) name.assign(static_cast<char const*>(field.data), field.length);
            auto number = numbers().find(field.name);
            if (number != numbers().end()) state.*number->second = *static_cast<int32_t const*>(field.data);
        }
        while (!name.empty() && name.back() == '\0') name.pop_back();
        return parse(name, state.kind) ? new GenrecKernel(state) : nullptr;
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
    if (registry()->registerCreator(creator, "")) return 0;
    // refused where an earlier engine of this process has registered it, maybe from another cache's copy of this library
    return registry()->getPluginCreator(creator.getPluginName(), creator.getPluginVersion(), "") ? 0 : 3;
}
