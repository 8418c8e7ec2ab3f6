#include "ascii.h"

#include <doctest/doctest.h>

#include <string>

using hybrid_rt::apps::to_ascii;

TEST_CASE("ASCII stays as it is") { CHECK(to_ascii("traffic light?~ 0.98") == "traffic light?~ 0.98"); }

TEST_CASE("Latin letters lose their accents") {
  CHECK(to_ascii("Z\u00FCrich stra\u00DFe \u0141\u00F3d\u017A \u1EA0 \u00C6r\u00F8") == "Zurich strasse Lodz A AEro");
  CHECK(to_ascii("e\u0301te\u0301") == "ete");  // the accents are separate characters
  CHECK(to_ascii("\u201Cit\u2019s\u201D \u2013 so\u2026") == "\"it's\" - so...");
}

TEST_CASE("each character without a Latin letter becomes a question mark") {
  CHECK(to_ascii("\u732B a \U0001F431") == "? a ?");
  CHECK(to_ascii("\u043A\u043E\u0442") == "???");
  CHECK(to_ascii("a\nb\tc\x7F") == "a?b?c?");
}

TEST_CASE("bytes that are not UTF-8 become question marks") {
  CHECK(to_ascii("\xFF\xFE") == "??");
  CHECK(to_ascii("a\xC3") == "a?");     // cut off
  CHECK(to_ascii("\xC3(") == "?(");     // not continued
  CHECK(to_ascii("\xE7\x8C") == "??");  // cut off
  CHECK(to_ascii("\xC0\xAF") == "??");  // overlong encoding
  CHECK(to_ascii("\xF8\x88\x80\x80\x80") == "?????");
}
