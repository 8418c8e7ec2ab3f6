#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

std::string compose(std::string_view scope, std::string_view subject, std::string_view expected, std::string_view got,
                    std::string_view remedy) {
  std::string text = "hybrid_rt[";
  text.append(scope).append("]: ").append(subject).append(": expected ").append(expected);
  text.append(", got ").append(got).append(".");
  if (!remedy.empty()) text.append(" ").append(remedy);
  return text;
}

}  // namespace

Error::Error(ErrorKind kind, std::string_view scope, std::string_view subject, std::string_view expected,
             std::string_view got, std::string_view remedy)
    : std::runtime_error(compose(scope, subject, expected, got, remedy)), kind_(kind) {}

}  // namespace hybrid_rt
