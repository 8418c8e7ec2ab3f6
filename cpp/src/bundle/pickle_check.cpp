#include "bundle/pickle_check.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <vector>

#include "bundle/script_text.h"

namespace hybrid_rt {
namespace {

constexpr size_t kMostNodes = size_t{1} << 20;
/// Limit of the stack and of the memo: here and in torch, values take more memory than their bytes in the file.
constexpr size_t kMostStacked = size_t{4} << 20;
constexpr uint32_t kDeepest = 200;
/// Limit of a pickle's values if shared ones are counted each time, because whoever walks it visits them each time.
constexpr uint64_t kMostValues = uint64_t{1} << 32;
/// Number of values of a tuple that are kept: enough for a tensor's arguments and sizes.
constexpr size_t kMostKept = 64;
constexpr uint64_t kTooMuch = std::numeric_limits<uint64_t>::max();

const std::set<std::string_view> kModules{"builtins", "collections", "torch", "torch._utils", "torch.jit._pickle"};

struct Refused {
  std::string got;
};

uint64_t product(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? kTooMuch : result;
}

uint64_t sum(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  return __builtin_add_overflow(a, b, &result) ? kTooMuch : result;
}

/// Reads a pickle without creating objects: the stack holds kinds and positions of values.
class Pickle {
 public:
  Pickle(std::string_view text, const StorageSize& storage_size) : text_(text), storage_size_(storage_size) {
    nodes_.emplace_back();  // none
  }

  void check(bool has_texts) {
    while (step(byte())) {
    }
    require_shallow();
    if (has_texts) require_texts();
  }

 private:
  enum class Kind : uint8_t { kOther, kMark, kNumber, kText, kNode };
  struct Value {
    Kind kind = Kind::kOther;
    uint32_t node = 0;
    int64_t number = 0;  ///< position of a string; also its length
  };
  struct Node {
    bool is_tuple = false;
    bool is_storage = false;
    uint64_t values = 1;         ///< number of values in it, without those in its nodes; elements of a storage
    std::vector<Value> items{};  ///< nodes; all values of a short tuple
  };

  uint8_t byte() { return static_cast<uint8_t>(take(1)[0]); }

  std::string_view take(size_t count) {
    if (count > text_.size() - at_) throw Refused{"a pickle that ends too early"};
    const std::string_view taken = text_.substr(at_, count);
    at_ += count;
    return taken;
  }

  template <class Number>
  Number number() {
    Number value{};
    std::memcpy(&value, take(sizeof(Number)).data(), sizeof(Number));
    return value;
  }

  std::string_view line() {
    const size_t end = text_.find('\n', at_);
    if (end == std::string_view::npos) throw Refused{"a pickle that ends too early"};
    const std::string_view found = take(end - at_);
    take(1);
    return found;
  }

  void push(Value value) {
    if (stack_.size() >= kMostStacked) {
      throw Refused{"a pickle with more than " + std::to_string(kMostStacked) + " values at the same time"};
    }
    stack_.push_back(value);
  }
  void push_number(int64_t value) { push({Kind::kNumber, 0, value}); }

  void push_text(size_t length) {
    const size_t begin = at_;
    take(length);
    push({Kind::kText, 0, static_cast<int64_t>(begin << 32 | length)});
  }

  std::string_view text_of(const Value& value) const {
    if (value.kind != Kind::kText) return {};
    const auto place = static_cast<uint64_t>(value.number);
    return text_.substr(place >> 32, place & 0xffffffff);
  }

  Value pop() {
    if (stack_.empty() || stack_.back().kind == Kind::kMark) throw Refused{"a pickle that takes a missing value"};
    const Value value = stack_.back();
    stack_.pop_back();
    return value;
  }

  /// Removes and returns the values since the last mark, and the mark.
  std::vector<Value> pop_marked() {
    size_t begin = stack_.size();
    while (begin > 0 && stack_[begin - 1].kind != Kind::kMark) --begin;
    if (begin == 0) throw Refused{"a pickle that takes a missing value"};
    std::vector<Value> values(stack_.begin() + static_cast<std::ptrdiff_t>(begin), stack_.end());
    stack_.resize(begin - 1);
    return values;
  }

  uint32_t new_node() {
    if (nodes_.size() >= kMostNodes) throw Refused{"a pickle of more than " + std::to_string(kMostNodes) + " objects"};
    nodes_.emplace_back();
    return static_cast<uint32_t>(nodes_.size() - 1);
  }

  Node& push_node() {
    const uint32_t node = new_node();
    push({Kind::kNode, node, 0});
    return nodes_[node];
  }

  void push_tuple(const std::vector<Value>& values) {
    Node& node = push_node();
    node.is_tuple = true;
    node.values = values.size() + 1;
    for (const Value& value : values) {
      if (value.kind == Kind::kNode || values.size() <= kMostKept) node.items.push_back(value);
    }
  }

  /// Adds values to the list, dict or object on top of the stack.
  void add(const std::vector<Value>& values) {
    if (stack_.empty() || stack_.back().kind != Kind::kNode)
      throw Refused{"a pickle that adds to a value that is not a container"};
    Node& node = nodes_[stack_.back().node];
    if (node.is_tuple || node.is_storage) throw Refused{"a pickle that adds to a value that is not a container"};
    node.values += values.size();
    for (const Value& value : values) {
      if (value.kind == Kind::kNode) node.items.push_back(value);
      if (value.kind == Kind::kNumber) least_added_ = std::min(least_added_, value.number);
      if (value.kind == Kind::kNumber) most_added_ = std::max(most_added_, value.number);
    }
  }

  void put(uint64_t at) {
    // torch allocates twice as many entries as the number says.
    if (at > memo_.size() || at >= kMostStacked || stack_.empty())
      throw Refused{"a pickle that numbers its objects otherwise than torch"};
    if (at == memo_.size()) memo_.emplace_back();
    memo_[at] = stack_.back();
  }

  void get(uint64_t at) {
    if (at >= memo_.size()) throw Refused{"a pickle that takes a missing value"};
    push(memo_[at]);
  }

  void global() {
    const std::string_view module = line();
    const std::string_view name = line();
    constexpr std::string_view kCustom = "__torch__.torch.classes.";
    std::string qualified = std::string(module) + ".";
    if (qualified.starts_with(kCustom)) {
      const std::string_view rest = std::string_view(qualified).substr(kCustom.size());
      const std::string_view space = rest.substr(0, rest.find('.'));
      if (is_refused_namespace(space)) throw Refused{"a class of " + std::string(space)};
    } else if (!qualified.starts_with("__torch__.") && !kModules.contains(module)) {
      throw Refused{"the class " + (qualified + std::string(name)).substr(0, 80)};
    }
    push({Kind::kText, 0, static_cast<int64_t>(static_cast<size_t>(name.data() - text_.data()) << 32 | name.size())});
  }

  /// Handles a storage: ("storage", type, key, device, elements).
  void persistent() {
    const Value argument = pop();
    const std::vector<Value> items = argument.kind == Kind::kNode ? nodes_[argument.node].items : std::vector<Value>();
    if (items.size() < 5 || text_of(items[0]) != "storage" || items[4].kind != Kind::kNumber || items[4].number < 0) {
      throw Refused{"an object of another file"};
    }
    const auto elements = static_cast<uint64_t>(items[4].number);
    if (elements > 0) {
      const std::optional<uint64_t> bytes = storage_size_(text_of(items[2]));
      if (!bytes || product(elements, element_size(text_of(items[1]))) > *bytes) {
        throw Refused{"a tensor that is longer than its record"};
      }
    }
    Node& node = push_node();
    node.is_storage = true;
    node.values = elements;
  }

  static uint64_t element_size(std::string_view storage) {
    for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
      const auto type = static_cast<c10::ScalarType>(i);
      if (type == c10::ScalarType::Undefined) continue;
      if (storage == std::string(c10::toString(type)) + "Storage") return c10::elementSize(type);
    }
    throw Refused{"a tensor of an unknown type"};
  }

  /// Handles a call. Functions that create tensors take a storage, then offset, sizes and strides.
  void reduce() {
    const Value arguments = pop();
    pop();
    if (arguments.kind != Kind::kNode || !nodes_[arguments.node].is_tuple) throw Refused{"a call without arguments"};
    const std::vector<Value> items = nodes_[arguments.node].items;
    if (items.size() >= 4 && items[0].kind == Kind::kNode && nodes_[items[0].node].is_storage) require_within(items);
    push_node().items = {arguments};
  }

  std::vector<uint64_t> counts(const Value& tuple) const {
    std::vector<uint64_t> found;
    if (tuple.kind != Kind::kNode || !nodes_[tuple.node].is_tuple) throw Refused{"a tensor without sizes"};
    if (nodes_[tuple.node].values > kMostKept) throw Refused{"a tensor of too many dimensions"};
    for (const Value& value : nodes_[tuple.node].items) {
      if (value.kind != Kind::kNumber || value.number < 0) throw Refused{"a tensor of negative sizes"};
      found.push_back(static_cast<uint64_t>(value.number));
    }
    return found;
  }

  void require_within(const std::vector<Value>& arguments) const {
    const std::vector<uint64_t> sizes = counts(arguments[2]);
    const std::vector<uint64_t> strides = counts(arguments[3]);
    if (arguments[1].kind != Kind::kNumber || arguments[1].number < 0 || sizes.size() != strides.size()) {
      throw Refused{"a tensor of other sizes than strides"};
    }
    if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return;
    uint64_t last = static_cast<uint64_t>(arguments[1].number);
    for (size_t i = 0; i < sizes.size(); ++i) last = sum(last, product(sizes[i] - 1, strides[i]));
    if (last >= nodes_[arguments[0].node].values) throw Refused{"a tensor that reaches beyond its storage"};
  }

  /// Handles one opcode. Returns true if the pickle continues.
  bool step(uint8_t code) {
    switch (code) {
      case 0x80:  // PROTO
        byte();
        return true;
      case '.':
        return false;
      case '(':
        push({Kind::kMark});
        return true;
      case 'N':
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push({});
        return true;
      case 'K':
        push_number(byte());
        return true;
      case 'M':
        push_number(number<uint16_t>());
        return true;
      case 'J':
        push_number(number<int32_t>());
        return true;
      case 0x8a:  // LONG1
        long_number();
        return true;
      case 'G':
        take(8);
        push({});
        return true;
      case 'U':
        push_text(byte());
        return true;
      case 'T':
      case 'X':
        push_text(number<uint32_t>());
        return true;
      default:
        return step_of_container(code);
    }
  }

  bool step_of_container(uint8_t code) {
    switch (code) {
      case ')':
        push_tuple({});
        return true;
      case 't':
        push_tuple(pop_marked());
        return true;
      case 0x85:  // TUPLE1
      case 0x86:
      case 0x87: {
        std::vector<Value> values(static_cast<size_t>(code - 0x84));
        for (auto value = values.rbegin(); value != values.rend(); ++value) *value = pop();
        push_tuple(values);
        return true;
      }
      case ']':
      case '}':
        push_node();
        return true;
      case 'a':
      case 'b':
        add({pop()});
        return true;
      case 's': {
        const Value value = pop();
        add({pop(), value});
        return true;
      }
      case 'e':
      case 'u':
        add(pop_marked());
        return true;
      case 0x81: {  // NEWOBJ
        const Value arguments = pop();
        pop();
        push_node().items = {arguments};
        return true;
      }
      default:
        return step_of_reference(code);
    }
  }

  bool step_of_reference(uint8_t code) {
    switch (code) {
      case 'q':
        put(byte());
        return true;
      case 'r':
        put(number<uint32_t>());
        return true;
      case 'h':
        get(byte());
        return true;
      case 'j':
        get(number<uint32_t>());
        return true;
      case 'c':
        global();
        return true;
      case 'Q':
        persistent();
        return true;
      case 'R':
        reduce();
        return true;
      case '0':
        pop();
        return true;
      default:
        throw Refused{"an instruction that torch does not write (" + std::to_string(code) + ")"};
    }
  }

  void long_number() {
    const std::string_view bytes = take(byte());
    if (bytes.size() > 8) return push({});
    uint64_t value = 0;
    for (size_t i = 0; i < bytes.size(); ++i) value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    const bool is_negative = !bytes.empty() && (static_cast<uint8_t>(bytes.back()) & 0x80) != 0;
    if (is_negative && bytes.size() < 8) value |= ~uint64_t{0} << (8 * bytes.size());
    push_number(static_cast<int64_t>(value));
  }

  /// Visits each object once, children first, without recursion.
  void require_shallow() const {
    enum : uint8_t { kNew, kOpen, kDone };
    std::vector<uint8_t> states(nodes_.size(), kNew);
    std::vector<uint32_t> depths(nodes_.size(), 1);
    std::vector<uint64_t> values(nodes_.size(), 1);
    std::vector<std::pair<uint32_t, size_t>> path;
    for (uint32_t root = 1; root < nodes_.size(); ++root) {
      if (states[root] == kNew) path.emplace_back(root, 0);
      while (!path.empty()) {
        auto& [node, next] = path.back();
        states[node] = kOpen;
        const std::vector<Value>& items = nodes_[node].items;
        while (next < items.size() && (items[next].kind != Kind::kNode || states[items[next].node] == kDone)) ++next;
        if (next < items.size()) {
          if (states[items[next].node] == kOpen) throw Refused{"an object that holds itself"};
          path.emplace_back(items[next].node, 0);
          continue;
        }
        values[node] = nodes_[node].is_storage ? 1 : nodes_[node].values;
        for (const Value& item : items) {
          if (item.kind != Kind::kNode) continue;
          depths[node] = std::max(depths[node], depths[item.node] + 1);
          values[node] = sum(values[node], values[item.node]);
        }
        if (depths[node] > kDeepest || values[node] > kMostValues) throw Refused{"objects that are nested too deeply"};
        states[node] = kDone;
        path.pop_back();
      }
    }
  }

  /// Checks what torch reads to show an error: ("FORMAT_WITH_STRING_TABLE", texts, ranges), where a source is (numbers
  /// of texts, number of its file's name, line). torch does not check these numbers.
  void require_texts() const {
    if (stack_.empty() || stack_.back().kind != Kind::kNode) return;
    const std::vector<Value>& root = nodes_[stack_.back().node].items;
    if (root.size() < 2 || text_of(root[0]) != "FORMAT_WITH_STRING_TABLE" || root[1].kind != Kind::kNode) return;
    const auto texts = static_cast<int64_t>(nodes_[root[1].node].values) - 1;
    bool is_within = least_added_ >= 0 && most_added_ < texts;
    for (const Node& node : nodes_) {
      const bool is_source = node.is_tuple && node.items.size() == 3 && node.items[0].kind == Kind::kNode &&
                             !nodes_[node.items[0].node].is_tuple && node.items[1].kind == Kind::kNumber;
      if (is_source) is_within = is_within && node.items[1].number >= 0 && node.items[1].number < texts;
    }
    if (!is_within) throw Refused{"the index of a missing string"};
  }

  std::string_view text_;
  const StorageSize& storage_size_;
  int64_t least_added_ = 0;  ///< smallest number in a list
  int64_t most_added_ = -1;
  size_t at_ = 0;
  std::vector<Value> stack_;
  std::vector<Value> memo_;
  std::vector<Node> nodes_;
};

}  // namespace

std::optional<std::string> refused_in_pickle(std::string_view pickle, const StorageSize& storage_size, bool has_texts) {
  try {
    Pickle(pickle, storage_size).check(has_texts);
  } catch (const Refused& refused) {
    return refused.got;
  }
  return std::nullopt;
}

}  // namespace hybrid_rt
