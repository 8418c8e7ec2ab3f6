#pragma once

/// Base class of objects whose lifetime has an effect, so that they can be neither copied nor moved.
class Lasting {
 public:
  Lasting(const Lasting&) = delete;
  Lasting& operator=(const Lasting&) = delete;

 protected:
  Lasting() = default;
  ~Lasting() = default;
};
