// PASS: refuse-wide-types
// CHECK: stablehlo.convert
// CHECK-SAME: jaxrank.refused = "a value of type i64; ids are looked up on the host; use int32"
// CHECK: stablehlo.convert
// CHECK-SAME: jaxrank.refused = "a value of type f64; use float32"
// CHECK: stablehlo.convert
// CHECK-NOT: jaxrank.refused
func.func @f(%x: tensor<4xf32>) -> tensor<4xi32> {
  %0 = stablehlo.convert %x : (tensor<4xf32>) -> tensor<4xi64>
  %1 = stablehlo.convert %x : (tensor<4xf32>) -> tensor<4xf64>
  %2 = stablehlo.convert %x : (tensor<4xf32>) -> tensor<4xi32>
  return %2 : tensor<4xi32>
}
