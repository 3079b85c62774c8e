//! Which device is used, and why there is none.

use std::ffi::CStr;

use cudarc::driver::sys;

use super::{DeviceError, MIN_CAPABILITY, MIN_DRIVER, Result, check};

/// What is asked before a device is used.
pub(super) trait Driver {
    /// Whether its library is there.
    fn is_present(&self) -> bool;
    /// CUDA version, 1000 times the major number plus 10 times the minor.
    fn version(&self) -> Result<i32>;
    /// Devices that it sees.
    fn n_devices(&self) -> Result<usize>;
    /// Name and compute capability of one of them.
    fn describe(&self, ordinal: usize) -> Result<(String, u32, u32)>;
}

/// A device that the kernels run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    /// CUDA version of the driver.
    pub(super) driver: i32,
}

/// Finds a device by number.
pub(super) fn find(
    driver: &impl Driver,
    ordinal: usize,
) -> std::result::Result<Found, DeviceError> {
    if !driver.is_present() {
        return Err(DeviceError::NoDriver);
    }
    let version = driver.version()?;
    if version < MIN_DRIVER {
        return Err(DeviceError::OldDriver { found: version });
    }
    let count = driver.n_devices()?;
    if ordinal >= count {
        return Err(DeviceError::NoDevice { ordinal, count });
    }
    let (name, major, minor) = driver.describe(ordinal)?;
    if major < MIN_CAPABILITY {
        return Err(DeviceError::OldDevice { name, major, minor });
    }
    Ok(Found {
        name,
        major,
        minor,
        driver: version,
    })
}

/// The driver of this machine.
pub(super) struct Nvidia;

impl Driver for Nvidia {
    fn is_present(&self) -> bool {
        // SAFETY: loads the library by its usual names, and its initialisers are NVIDIA's.
        unsafe { sys::is_culib_present() }
    }

    fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: the library is there, and the call writes one integer.
        let result = unsafe { sys::cuDriverGetVersion(&mut version) };
        check(result, || "cuDriverGetVersion".into())?;
        Ok(version)
    }

    fn n_devices(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the library is there; the second call writes one integer.
        unsafe {
            let started = sys::cuInit(0);
            if started == sys::CUresult::CUDA_ERROR_NO_DEVICE {
                return Ok(0);
            }
            check(started, || "cuInit".into())?;
            check(sys::cuDeviceGetCount(&mut count), || {
                "cuDeviceGetCount".into()
            })?;
        }
        Ok(count.max(0) as usize)
    }

    fn describe(&self, ordinal: usize) -> Result<(String, u32, u32)> {
        let device = handle(ordinal)?;
        let mut name = [0; 256];
        // SAFETY: the buffer has the length that is said, and one byte more that stays zero.
        let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) };
        check(named, || "cuDeviceGetName".into())?;
        // SAFETY: the buffer was zero, and its last byte was not given to the driver.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        use sys::CUdevice_attribute_enum as A;
        Ok((
            name.to_string_lossy().into_owned(),
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }
}

/// The driver's name of one of its devices.
pub(super) fn handle(ordinal: usize) -> Result<sys::CUdevice> {
    let mut device = 0;
    // SAFETY: writes one integer; a number that is none of a device is an error.
    let result = unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) };
    check(result, || "cuDeviceGet".into())?;
    Ok(device)
}

/// A number that the driver knows of a device; 0 in place of a negative one.
pub(super) fn attribute(device: sys::CUdevice, what: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: a known attribute of a device that is there.
    let result = unsafe { sys::cuDeviceGetAttribute(&mut value, what, device) };
    check(result, || "cuDeviceGetAttribute".into())?;
    Ok(value.max(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CudaError;

    /// A driver that says what a test wrote down.
    #[derive(Clone)]
    struct Fake {
        is_present: bool,
        version: i32,
        devices: Vec<(&'static str, u32, u32)>,
    }

    impl Driver for Fake {
        fn is_present(&self) -> bool {
            self.is_present
        }
        fn version(&self) -> Result<i32> {
            assert!(
                self.is_present,
                "nothing is asked of a driver that is not there"
            );
            Ok(self.version)
        }
        fn n_devices(&self) -> Result<usize> {
            assert!(self.version >= MIN_DRIVER, "nor of one that is too old");
            Ok(self.devices.len())
        }
        fn describe(&self, ordinal: usize) -> Result<(String, u32, u32)> {
            let (name, major, minor) = self.devices[ordinal];
            Ok((name.to_owned(), major, minor))
        }
    }

    #[test]
    fn every_reason_to_have_no_device_is_said_with_what_to_do() {
        let machine = Fake {
            is_present: true,
            version: 13_000,
            devices: vec![("NVIDIA H200", 9, 0), ("Tesla V100", 7, 0)],
        };
        let found = find(&machine, 0).expect("a device");
        assert_eq!((found.name.as_str(), found.major), ("NVIDIA H200", 9));
        let says = |machine: &Fake, ordinal, text: &str, is_absent| {
            let error = find(machine, ordinal).expect_err(text);
            assert_eq!(error.to_string(), text);
            assert_eq!(CudaError::Device(error).is_absent(), is_absent, "{text}");
        };
        let missing = Fake {
            is_present: false,
            ..machine.clone()
        };
        says(
            &missing,
            0,
            "the NVIDIA driver is not installed (libcuda was not found)",
            true,
        );
        let old = Fake {
            version: 11_080,
            ..machine.clone()
        };
        says(
            &old,
            0,
            "the NVIDIA driver supports CUDA 11.8, this program needs 12.0: update the driver",
            false,
        );
        let empty = Fake {
            devices: Vec::new(),
            ..machine.clone()
        };
        says(
            &empty,
            0,
            "there is no CUDA device 0: the driver sees 0",
            true,
        );
        says(
            &machine,
            2,
            "there is no CUDA device 2: the driver sees 2",
            true,
        );
        says(
            &machine,
            1,
            "Tesla V100 has compute capability 7.0, the kernels need 8.0",
            false,
        );
    }
}
