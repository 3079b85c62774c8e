struct W8 { a: vec4<f32>, b: vec4<f32> }
