// PASS: legalize-dynamism
// CHECK-LABEL: @f
// CHECK: linalg.fill
// CHECK: linalg.generic
// CHECK-SAME: ["parallel", "parallel", "parallel", "reduction"]
// CHECK: arith.mulf
// CHECK-NEXT: arith.addf
// CHECK-NOT: stablehlo
func.func @f(%x: tensor<?x4x8xf32>, %y: tensor<?x8x16xf32>) -> tensor<?x4x16xf32> {
  %0 = stablehlo.dot_general %x, %y, batching_dims = [0] x [0], contracting_dims = [2] x [1] : (tensor<?x4x8xf32>, tensor<?x8x16xf32>) -> tensor<?x4x16xf32>
  return %0 : tensor<?x4x16xf32>
}
