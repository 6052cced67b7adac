//! Our channel program. Short, and without comments: each run is written to the pool's history, text and all.
//!
//! What they use is in `zfs-program(8)` and `module/zfs/zcp_*.c`, the same in OpenZFS 2.1 to 2.4. Lua's numbers
//! are `i64`; arguments come as strings, `i64` and arrays of strings only.

/// Arguments: `d` datasets, and for each `p` property, `k` "s" to set or "i" to inherit, `v` value. Answer: `r`
/// from the place to an error number; `n` changes that were made before one failed.
///
/// All are checked before the first is made. The look whether it exists is not for comfort: the kernel checks
/// nothing of a user property that is inherited, and `dsl_props_set_sync` panics over a dataset that is not
/// there (`VERIFY0(dsl_dataset_hold(...))`, 2.1 to 2.4).
pub(crate) const CHANGE: &str = r#"local a=...
local r,b={},false
local function f(m,i)
if a.k[i]=="s" then return m.set_prop(a.d[i],a.p[i],a.v[i]) end
return m.inherit(a.d[i],a.p[i])
end
for i,d in ipairs(a.d) do
local e=ENOENT
if zfs.exists(d) then e=f(zfs.check,i) end
if e~=0 then r[i]=e b=true end
end
if b then return {r=r,n=0} end
for i in ipairs(a.d) do
local e=f(zfs.sync,i)
if e~=0 then r[i]=e return {r=r,n=i-1} end
end
return {r=r,n=#a.d}"#;
