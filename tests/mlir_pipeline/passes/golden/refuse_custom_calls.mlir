// PASS: refuse-custom-calls
// CHECK: stablehlo.custom_call @lapack_sgetrf
// CHECK-SAME: jaxrank.refused = "it calls 'lapack_sgetrf', code that is not part of the module"
// CHECK-NOT: jaxrank.refused
func.func @f(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = stablehlo.custom_call @lapack_sgetrf(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %1 = stablehlo.add %0, %0 : tensor<4x4xf32>
  return %1 : tensor<4x4xf32>
}
