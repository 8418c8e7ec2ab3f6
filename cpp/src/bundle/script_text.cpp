#include "bundle/script_text.h"

#include <cctype>
#include <set>
#include <vector>

namespace hybrid_rt {
namespace {

/// Limit of nesting, because torch's parser and compiler recurse for each level. Code that torch prints for real heads
/// nests some tens of levels.
constexpr size_t kDeepestBrackets = 200;
constexpr size_t kDeepestIndent = 500;  ///< two blanks per level
constexpr size_t kMostElifs = 100;
/// Limit for all records of an archive. torch's parser needed 175 bytes per name, number and operator for a file from
/// tools/fuzz: 2.7 MB of code took 476 MB. The head of a Faster R-CNN has 12,000 tokens.
constexpr size_t kMostTokens = 500'000;
/// Limit of consecutive operators without a comma or bracket between them, each of which is a level in the tree of an
/// expression.
constexpr size_t kLongestChain = 1000;

/// Operators that read or write files, contact another process, run Python, or interpret raw memory as a tensor.
/// tests/python/bundle/test_script_check.py checks that every operator of torch and torchvision with a file name among
/// its arguments is here.
const std::set<std::string_view> kOperators{"save",        "from_file",       "read_file",          "write_file",
                                            "load_tensor", "rpc_async",       "rpc_sync",           "rpc_remote",
                                            "PythonOp",    "IgnoredPythonOp", "CallFunctionPython", "_alloc_from_pool",
                                            "data_ptr",    "from_blob",       "_reinterpret_tensor"};

/// Refused namespaces of operators (`ops.NAME.`) and of classes (`classes.NAME.`).
const std::set<std::string_view> kNamespaces{"_c10d_functional",
                                             "_c10d_functional_autograd",
                                             "_dtensor",
                                             "aoti",
                                             "aoti_custom_ops",
                                             "c10d",
                                             "c10d_functional",
                                             "debugprims",
                                             "dist_autograd",
                                             "dist_rpc",
                                             "fsdp",
                                             "inductor",
                                             "nativert",
                                             "rpc",
                                             "static_runtime",
                                             "symm_mem"};

/// Methods that torch runs while it reads an archive.
const std::set<std::string_view> kMethods{"__setstate__"};

bool begins_name(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_of_name(char c) { return begins_name(c) || std::isdigit(static_cast<unsigned char>(c)) != 0; }

/// Reads the text token by token, as torch's lexer does.
class CodeText {
 public:
  CodeText(std::string_view text, size_t& tokens) : text_(text), tokens_(tokens), chains_(1) {}

  std::optional<std::string> refused() {
    while (at_ < text_.size() && !refusal_) step();
    if (!refusal_) end_literal();
    return refusal_;
  }

 private:
  void refuse(const std::string& got) {
    if (!refusal_) refusal_ = got;
  }

  void step() {
    const char c = text_[at_];
    if (c == '\n') return new_line();
    if (c == '"' || c == '\'') return string(c);
    if (c == '#') return comment();
    if (c != ' ' && c != '\t' && c != '\r' && c != '\\') end_literal();
    if (begins_name(c)) return name();
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) return number();
    ++at_;
    if (std::isspace(static_cast<unsigned char>(c)) == 0) count();
    if (c == '(' || c == '[' || c == '{') {
      chains_.push_back(0);
      if (chains_.size() > kDeepestBrackets) refuse("brackets that are nested too deeply");
    } else if (c == ')' || c == ']' || c == '}') {
      if (chains_.size() > 1) chains_.pop_back();
      link();  // repeated calls or indexing form a chain too
    } else if (c == ',' || c == ';') {
      chains_.back() = 0;
    } else if (std::ispunct(static_cast<unsigned char>(c)) != 0 && c != '_') {
      link();
    }
    if (c != ' ' && c != '\t' && c != '\r' && c != '\\') last_ = c;
  }

  void count() {
    if (++tokens_ > kMostTokens) refuse("more than " + std::to_string(kMostTokens) + " names, numbers and operators");
  }

  void number() {
    count();
    last_ = text_[at_];
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }

  void link() {
    if (++chains_.back() > kLongestChain) refuse("an expression that is nested too deeply");
  }

  void new_line() {
    end_literal();
    if (chains_.size() == 1) chains_.back() = 0;
    size_t indent = 0;
    while (++at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++indent;
    if (indent > kDeepestIndent) refuse("blocks that are nested too deeply");
    if (last_ != '.') last_ = '\n';
  }

  /// torch reads types from comments, so names in them count.
  void comment() {
    end_literal();
    for (; at_ < text_.size() && text_[at_] != '\n';) {
      if (begins_name(text_[at_])) {
        name();
      } else {
        if (text_[at_] != ' ' && text_[at_] != '\t') last_ = text_[at_];
        ++at_;
      }
    }
  }

  void name() {
    const size_t begin = at_;
    while (at_ < text_.size() && is_of_name(text_[at_])) ++at_;
    const std::string_view word = text_.substr(begin, at_ - begin);
    count();
    check(word);
    if (word == "elif" && ++elifs_ > kMostElifs) refuse("branches that are nested too deeply");
    if (word == "not" || word == "and" || word == "or" || word == "if" || word == "lambda") link();
    if (word == "getattr") has_getattr_ = true;
    last_ = 'a';
  }

  void check(std::string_view word) {
    if (kOperators.contains(word) && last_ == '.') refuse("the operator " + std::string(word));
    if (word.starts_with("rpc_") && kOperators.contains(word)) refuse("the operator " + std::string(word));
    if (kMethods.contains(word)) refuse("a method " + std::string(word));
    if (kNamespaces.contains(word) && last_ == '.') refuse("operators or classes of " + std::string(word));
  }

  void string(char quote) {
    count();
    const bool is_long = text_.substr(at_, 3) == std::string(3, quote);
    const std::string end(is_long ? 3 : 1, quote);
    at_ += end.size();
    while (at_ < text_.size() && text_.substr(at_, end.size()) != end) {
      if (text_[at_] == '\n' && !is_long) return refuse("a string without an end");
      literal_ += text_[at_] == '\\' ? escaped() : text_[at_++];
    }
    if (at_ >= text_.size()) return refuse("a string without an end");
    at_ += end.size();
    last_ = quote;
  }

  /// Returns the character of an escape sequence: a name that getattr receives may contain them.
  char escaped() {
    ++at_;
    if (at_ >= text_.size()) return '\\';
    const char kind = text_[at_++];
    const int base = kind == 'x' ? 16 : 8;
    size_t digits = kind == 'x' ? 2 : 3;
    if (kind != 'x') {
      if (kind < '0' || kind > '7') return kind;
      --at_;
    }
    int value = 0;
    for (; digits > 0 && at_ < text_.size() && std::isxdigit(static_cast<unsigned char>(text_[at_])) != 0; --digits) {
      const char digit = static_cast<char>(std::tolower(static_cast<unsigned char>(text_[at_])));
      const int number = digit <= '9' ? digit - '0' : digit - 'a' + 10;
      if (number >= base) break;
      value = value * base + number;
      ++at_;
    }
    return static_cast<char>(value);
  }

  /// Adjacent strings are one string, and a name if getattr receives it.
  void end_literal() {
    if (literal_.empty()) return;
    const std::string word = std::move(literal_);
    literal_.clear();
    const bool is_name = kOperators.contains(word) || kNamespaces.contains(word) || kMethods.contains(word);
    if (is_name && has_getattr_) refuse("getattr of '" + word + "'");
  }

  std::string_view text_;
  size_t& tokens_;
  size_t at_ = 0;
  char last_ = '\n';            ///< kind of the last token: its character, 'a' for a name
  std::vector<size_t> chains_;  ///< per open bracket, the operators since its last comma
  size_t elifs_ = 0;
  bool has_getattr_ = false;
  std::string literal_;  ///< the strings that were just read
  std::optional<std::string> refusal_;
};

}  // namespace

std::optional<std::string> refused_in_code(std::string_view text, size_t& tokens) {
  return CodeText(text, tokens).refused();
}

bool is_refused_namespace(std::string_view name) { return kNamespaces.contains(name); }

}  // namespace hybrid_rt
