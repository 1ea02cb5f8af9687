// Products of matrices of a few dozen to a few hundred rows and columns, in float32.
//
// MKL, which torch calls for them, takes a slow path on processors of other makers (half of oneDNN's rate on AMD's with
// AVX-512). Columns are cut into panels that fill two registers, and a tile of a result stays in registers.

#pragma once

#include "lanes.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace dualcaps {

#ifdef __AVX512F__
constexpr int VECTOR = 16, MOST_ROWS = 12;
#else
constexpr int VECTOR = 8, MOST_ROWS = 6;
#endif
constexpr int64_t PANEL = 2 * VECTOR;
typedef float Vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

inline Vector& vector_at(float* at) { return *reinterpret_cast<Vector*>(at); }
inline const Vector& vector_at(const float* at) { return *reinterpret_cast<const Vector*>(at); }

// The columns of a matrix in memory, filled up to whole vectors.
inline int64_t filled(int64_t columns) { return (columns + VECTOR - 1) / VECTOR * VECTOR; }

// Matrices one after the other, in each of which the rows of a panel of columns lie side by side.
template <typename Number>
struct Matrices {
  Number* data;
  int64_t rows, columns;  // columns filled up
  int64_t size() const { return rows * columns; }
  int64_t width(int64_t column) const { return std::min(PANEL, columns - column / PANEL * PANEL); }
  // A number of the first matrix.
  Number* at(int64_t row, int64_t column) const {
    int64_t first = column / PANEL * PANEL;
    return data + first * rows + row * width(column) + column - first;
  }
  Matrices of(int64_t number) const { return {data + number * size(), rows, columns}; }
  operator Matrices<const float>() const { return {data, rows, columns}; }
};

// sum[m][n] += a[m * by_row + k * by_depth] * b[k * by_b + n] for all k.
template <int ROWS, int VECTORS>
inline __attribute__((always_inline)) void accumulate(Vector (&sum)[ROWS][VECTORS], const float* a, int64_t by_row,
                                                      int64_t by_depth, const float* b, int64_t by_b, int64_t depth) {
  _Pragma("GCC unroll 2")  // half as fast without, for some tiles
  for (int64_t k = 0; k < depth; ++k, a += by_depth, b += by_b) {
    Vector right[VECTORS];
    UNROLL
    for (int v = 0; v < VECTORS; ++v) right[v] = vector_at(b + v * VECTOR);
    UNROLL
    for (int m = 0; m < ROWS; ++m) {
      UNROLL
      for (int v = 0; v < VECTORS; ++v) sum[m][v] += a[m * by_row] * right[v];
    }
  }
}

// Calls use(rows, vectors) with constants for `rows` of up to MOST_ROWS and a panel's width.
template <int ROWS = MOST_ROWS, typename Use>
inline void for_tile(int64_t rows, int64_t width, const Use& use) {
  if (rows < ROWS) {
    if constexpr (ROWS > 1) for_tile<ROWS - 1>(rows, width, use);
  } else if (width == PANEL) {
    use(std::integral_constant<int, ROWS>(), std::integral_constant<int, 2>());
  } else {
    use(std::integral_constant<int, ROWS>(), std::integral_constant<int, 1>());
  }
}

// c = a b, of the first `rows` rows; `depth` columns of a.
inline void set_product(const Matrices<const float>& a, const Matrices<const float>& b, const Matrices<float>& c,
                        int64_t rows, int64_t depth) {
  for (int64_t column = 0; column < c.columns; column += PANEL) {
    int64_t width = c.width(column);
    for (int64_t row = 0; row < rows; row += MOST_ROWS) {
      for_tile(std::min<int64_t>(MOST_ROWS, rows - row), width, [&](auto height, auto vectors) {
        Vector sum[height][vectors] = {};
        for (int64_t first = 0; first < depth; first += PANEL)
          accumulate(sum, a.at(row, first), a.width(first), 1, b.at(first, column), width,
                     std::min(PANEL, depth - first));
        for (int m = 0; m < height; ++m)
          for (int v = 0; v < vectors; ++v) vector_at(c.at(row + m, column) + v * VECTOR) = sum[m][v];
      });
    }
  }
}

// c += a^T b, of the first `rows` columns of a; `depth` rows of a and b.
inline void add_product(const Matrices<const float>& a, const Matrices<const float>& b, const Matrices<float>& c,
                        int64_t rows, int64_t depth) {
  for (int64_t column = 0; column < c.columns; column += PANEL) {
    int64_t width = c.width(column);
    for (int64_t row = 0; row < rows; row += PANEL / 4) {
      for_tile(std::min(PANEL / 4, rows - row), width, [&](auto height, auto vectors) {
        Vector sum[height][vectors];
        auto place = [&](int m, int v) { return c.at(row + m, column) + v * VECTOR; };
        for (int m = 0; m < height; ++m)
          for (int v = 0; v < vectors; ++v) sum[m][v] = vector_at(place(m, v));
        accumulate(sum, a.at(0, row), 1, a.width(row), b.at(0, column), width, depth);
        for (int m = 0; m < height; ++m)
          for (int v = 0; v < vectors; ++v) vector_at(place(m, v)) = sum[m][v];
      });
    }
  }
}

}  // namespace dualcaps
