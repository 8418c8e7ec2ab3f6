#pragma once

/// Base of objects that stand for something as long as they live, and so are neither copied nor moved.
class Lasting {
 public:
  Lasting(const Lasting&) = delete;
  Lasting& operator=(const Lasting&) = delete;

 protected:
  Lasting() = default;
  ~Lasting() = default;
};
